"""Operations that deserve an implementation per platform."""
