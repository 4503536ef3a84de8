"""From a configuration to objects: its check, its building, and what every command shares."""
