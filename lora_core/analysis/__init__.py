"""Figures about LoRAs: what they change, and what they copy."""
