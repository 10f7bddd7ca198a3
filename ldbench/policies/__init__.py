"""When stages leave training: pure rules, without torch, and the methods by name."""
