"""Experimental paths that have hardly run on a GPU. Off unless asked for."""
