"""Rate-distortion and speed, measured on real volumes; run the modules with `python -m`."""
