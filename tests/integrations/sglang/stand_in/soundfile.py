"""SGLang's server imports this to read sound, of which there is none here."""


def available_formats() -> dict[str, str]:
    """What mistral_common asks for, which takes this module for the real one."""
    return {}
