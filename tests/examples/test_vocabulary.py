"""Words to numbers, and the word vectors that training starts from."""

import pytest
import torch

from latent import latent_word_vectors
from vocabulary import PADDING, UNKNOWN, Vocabulary, split_characters, split_words


def test_words_are_lower_case_letters_and_digits_of_any_script():
    assert split_words("Two dogs' 3rd Überfall -- _yes_!") == [
        "two", "dogs", "3rd", "überfall", "yes",
    ]  # fmt: skip


def test_numbers_are_padded_and_rare_words_unknown():
    vocabulary = Vocabulary(["a dog", "a cat", "the dog"], min_count=2)
    assert len(vocabulary) == 4  # padding, unknown, a, dog
    a, dog = vocabulary.numbers["a"], vocabulary.numbers["dog"]
    words = vocabulary.encode(["A dog!", "the a cat dog", "..."])
    assert words.dtype == torch.int64
    assert words.tolist() == [
        [a, dog, PADDING, PADDING],
        [UNKNOWN, a, UNKNOWN, dog],
        [UNKNOWN, PADDING, PADDING, PADDING],
    ]


def test_numbers_do_not_depend_on_the_order_of_the_captions():
    captions = ["red circle", "blue square", "red square"]
    assert Vocabulary(captions).numbers == Vocabulary(captions[::-1]).numbers


def test_characters_are_for_scripts_without_spaces():
    captions = ["一只狗在跑。", "两只猫 on 2 mats"]
    assert split_characters(captions[0]) == ["一", "只", "狗", "在", "跑"]
    with pytest.raises(ValueError, match=r"none of the 5 different words .* occurs 2 times; .*tok"):
        Vocabulary(captions, min_count=2)
    assert list(Vocabulary(captions, min_count=2, tokenizer="characters").numbers) == ["只"]


def test_an_unknown_tokenizer_is_refused():
    with pytest.raises(ValueError, match="tokenizer must be 'words' or 'characters', got 'bpe'"):
        Vocabulary(["a"], tokenizer="bpe")


def test_a_min_count_below_one_is_refused():
    with pytest.raises(ValueError, match="min_count must be at least 1, got 0"):
        Vocabulary(["a"], min_count=0)


def test_words_of_like_images_start_alike():
    torch.manual_seed(0)
    captions = (["dog runs"] * 2 + ["puppy runs"] * 3) * 4 + ["boat sails", "ship sails"] * 10
    captions += ["tree grows"] * 20
    vocabulary = Vocabulary(captions)
    vectors = latent_word_vectors(vocabulary.encode(captions), 5, len(vocabulary), 64, scale=0.1)
    assert vectors.shape == (len(vocabulary), 64)
    assert vectors[[PADDING, UNKNOWN]].eq(0).all()
    assert vectors[UNKNOWN + 1 :].std().item() == pytest.approx(0.1, rel=1e-4)
    dog, puppy, ship = (vectors[vocabulary.numbers[word]] for word in ("dog", "puppy", "ship"))
    alike = torch.nn.functional.cosine_similarity
    assert alike(dog, puppy, dim=0) > 0.9 > 0.1 > alike(dog, ship, dim=0).abs()


def test_words_without_any_contrast_start_at_zero_and_finite():
    words = torch.full((10, 2), UNKNOWN + 1)
    assert latent_word_vectors(words, 5, 3, 4, scale=0.1).eq(0).all()
