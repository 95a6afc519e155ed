"""The runtime type checker of the test suite: beartype, with int accepted where float stands."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
