"""What is kept back: a photo where there are many, a crop of each where there are few, two class images of twelve."""

from small_data import small_data

from trainer.data.photos import Photo, PhotoSet
from trainer.guard import held


def photo(index):
    return Photo(f"{index}.png", "a photo of sks dog", (64, 64), f"{index:02d}")


def test_one_of_many_photos_is_kept_back_and_none_of_few():
    few, spared = held.hold_out(PhotoSet(tuple(photo(i) for i in range(5))))
    assert len(few.photos) == 5 and spared is None
    many, spared = held.hold_out(PhotoSet(tuple(photo(i) for i in range(9))))
    assert len(many.photos) == 8 and spared == photo(0)
    assert held.held_views(many, spared, (64, 64))[0][0] == spared


def test_held_out_crops_differ_from_the_trained_ones():
    for _, view in held.held_views(PhotoSet((photo(1),)), None, (64, 64)):
        assert view.flip and view.box != (0, 0, 64, 64)


def test_class_images_are_kept_back_where_enough_remain():
    _, data, _ = small_data()
    rest, spared = held.hold_out_class(data)
    assert rest.class_count == 12 and [e.name for e in spared] == ["c12", "c13"]
    assert held.hold_out_class(rest)[0].class_count == 10
    assert held.hold_out_class(held.hold_out_class(rest)[0])[1] == []
