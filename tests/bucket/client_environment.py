"""What a process needs in its environment, so that its clients of Google Cloud Storage go to the fake bucket."""

import pathlib

_LOCAL = "127.0.0.1,localhost"  # without it, JAX's coordinator would be looked for behind the proxy
_NOWHERE = "127.0.0.1:1"  # nothing listens there, so nobody waits for a metadata server


def client_environment(url: str, authority: pathlib.Path) -> dict[str, str]:
    """Returns the variables of a client.

    Args:
      url: where the fake bucket listens, such as http://127.0.0.1:9000.
      authority: the certificate to trust.
    """
    return {
        # TensorFlow: its address is compiled in, so it goes through the proxy.
        "HTTPS_PROXY": url,
        "https_proxy": url,
        "NO_PROXY": _LOCAL,
        "no_proxy": _LOCAL,
        "CURL_CA_BUNDLE": str(authority),
        # tensorstore
        "TENSORSTORE_GCS_HTTP_URL": url,
        # google-cloud-cpp, hence array_record
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
        # google-cloud-storage, hence orbax. It follows an object's mediaLink, through the proxy.
        "STORAGE_EMULATOR_HOST": url,
        "REQUESTS_CA_BUNDLE": str(authority),
        # Credentials. TensorFlow and tensorstore take the token; nobody asks a metadata server.
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "fake",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_ROOT": _NOWHERE,
        "GCE_METADATA_HOST": _NOWHERE,
        "GCE_METADATA_IP": _NOWHERE,
    }
