"""Finding by differentiation which parameters belong to which unit, and layouts learnt from it."""
