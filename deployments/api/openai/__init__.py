"""The dialect of the OpenAI images API."""
