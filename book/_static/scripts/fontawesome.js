// In the place of the theme's: its style sheet has the icons as a font, and as a script they weigh 1.5 MB.
