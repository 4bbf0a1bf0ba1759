"""SGLang's load generator imports this to read datasets; made-up prompts need none."""


def load_dataset(*args: object, **kwargs: object) -> object:
    raise RuntimeError("a stand-in has no datasets")
