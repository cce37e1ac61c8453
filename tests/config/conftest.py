import pytest

from mixer.config import recipe


@pytest.fixture(scope="session")
def base_with():
    """Makes the default config with some settings changed, as in base_with(input__crop="pad")."""

    def make(**fields):
        config = recipe.base()
        config.update_from_flattened_dict({name.replace("__", "."): value for name, value in fields.items()})
        return config

    return make
