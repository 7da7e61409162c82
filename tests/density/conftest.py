import pytest

from softtrunc import SDE, VESDE, VPSDE, ReciprocalVESDE, SubVPSDE

SDES = [VPSDE(), SubVPSDE(), VESDE(), ReciprocalVESDE()]


@pytest.fixture(params=SDES, ids=lambda sde: type(sde).__name__)
def sde(request: pytest.FixtureRequest) -> SDE:
    return request.param
