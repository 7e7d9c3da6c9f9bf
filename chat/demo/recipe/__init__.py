"""How the embedded model was trained and measured. The program never imports it."""
