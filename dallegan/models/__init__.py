"""The four boxes of the design document, a file each, and what composes them."""
