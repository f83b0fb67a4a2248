"""Behind helpers.export: the frame of every writer, the runtimes, Core ML, TorchServe and phones."""
