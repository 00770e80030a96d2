    assert "Means over 1 of 2 seeds; 1 diverged." in some.table()


def test_modules_that_take_a_while_are_there_when_asked_for():
    for name in ("plot", "report", "geometry"):
        assert inspect.ismodule(getattr(cljax, name)) and name in dir(cljax)
    with pytest.raises(AttributeError, match="no attribute 'plots'"):
        cljax.plots  # noqa: B018
