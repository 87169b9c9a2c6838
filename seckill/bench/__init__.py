"""Measures the pipeline on the servers that the settings name. Loads it; judges nothing but its own figures."""
