"""The built-in storybook: procedural illustrated scenes with bilingual captions."""
