"""Facts in, findings out. No input, no output, no clock: every rule of the doctor can be tested as a plain function."""
