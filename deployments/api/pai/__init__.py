"""The API of the PAI AI-portrait SDKs, in its own words: see README.md."""
