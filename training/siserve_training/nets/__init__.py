"""Networks: tensors in, tensors out. They know no probability."""
