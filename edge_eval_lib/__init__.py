"""Edge-Eval: the deployment lifecycle of language models, measured."""
