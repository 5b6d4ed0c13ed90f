"""One version against another on prompts that nothing was trained on: win rates, text measures, blind questions."""
