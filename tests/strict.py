"""The runtime type checker of the test suite: beartype, with int accepted for float."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
