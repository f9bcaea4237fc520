"""Speed and quality, measured on the machine at hand: each benchmark is a command with a JSON result."""
