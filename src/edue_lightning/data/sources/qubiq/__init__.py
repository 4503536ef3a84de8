"""QUBIQ: several data sets with several raters and tasks each."""
