"""The HTTP face: OpenAI's API over the engine replicas."""
