"""Experimental paths that have never run on a GPU. Off unless asked for."""
