"""DDS: Hertz, Aberman, Cohen-Or 2023, Delta Denoising Score."""
