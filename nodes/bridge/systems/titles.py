"""How the nodes of these systems are called, for the errors that send a person to them."""

LOAD_MODEL = "Load Kandinsky / Wuerstchen Model"
LOAD_TEXT = "Load Kandinsky / Wuerstchen Text Encoder"
LOAD_VAE = "Load Kandinsky / Wuerstchen VAE"
EMPTY_LATENTS = "Empty Latents (Kandinsky / Wuerstchen)"
TO_CONDITIONING = "Prior to Conditioning (Kandinsky / Wuerstchen)"
VISION_AS_VAE = "CLIP Vision as VAE (Kandinsky)"
