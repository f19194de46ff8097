"""The same toy layers in Linen."""
