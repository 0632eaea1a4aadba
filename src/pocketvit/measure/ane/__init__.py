"""What the Neural Engine would make of a model: padding, copies, ranks and kinds, counted without a device."""
