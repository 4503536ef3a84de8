"""QUBIQ: several tasks with several raters."""
