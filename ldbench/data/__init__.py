"""Images: data sets by name, the readers of their files, and minibatches made on the device.

``datasets.load_dataset`` reads, ``loader.ResidentSplit`` keeps the images on the device and augments them there, and
``stream`` says in which order samples come.
"""
