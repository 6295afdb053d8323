"""Operations with one implementation per platform."""
