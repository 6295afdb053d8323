"""The rectified flow as separate, pure functions (equations in docs/model.md)."""
