"""Operations that methods share: adapters, anchors, attention, regions."""
