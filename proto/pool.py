"""The descriptor pool that every message of this package lives in.

TensorFlow and its serving API register messages of the same names in protobuf's default
pool. In a pool of their own, ours can be imported beside them, in any order. (Only
protobuf's slow pure-Python implementation, which no wheel of it chooses by itself,
registers every generated message in the default pool as well.)
"""

from typing import Final

from google.protobuf.descriptor_pool import DescriptorPool

POOL: Final = DescriptorPool()
