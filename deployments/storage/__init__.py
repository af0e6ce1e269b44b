"""Where blobs live: a local folder or S3, behind one promise (`store.ObjectStore`)."""

from configs.settings import Settings
from deployments.storage.key import checked_prefix
from deployments.storage.store import ObjectStore


def open_store(settings: Settings) -> ObjectStore:
    """The store that the settings name. Raises ValueError for a prefix that is no key."""
    if settings.storage.kind == "s3":
        # Imported here: boto3 takes a quarter of a second, and a local folder needs none of it.
        from deployments.storage.s3 import S3Store

        return S3Store(settings.storage)
    from deployments.storage.local import LocalStore

    root = settings.data_dir / "objects" / checked_prefix(settings.storage.prefix)
    return LocalStore(root, url_base=settings.http.public_url or "")
