"""Teachers that are language models: prompts, endpoints, and a client that loses no answer and spends no surprise."""
