"""Files of any kind -> their records. What a record means is decided in `data`."""
