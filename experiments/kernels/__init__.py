"""Published grouped GEMMs against tiles, waves and a roofline."""
