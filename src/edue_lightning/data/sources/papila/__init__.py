"""PAPILA: fundus photographs of both eyes, disc and cup outlined by two experts."""
