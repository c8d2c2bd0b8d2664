"""Where rows come from: files, the Hub, Python objects, and which of them are held out."""
