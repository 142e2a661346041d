"""The built-in storybook: illustrated scenes drawn by code, with captions in two languages."""
