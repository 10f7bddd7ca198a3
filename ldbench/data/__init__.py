"""Images: data sets by name, their files, minibatches on the device, and in which order samples come."""
