"""Folders as users have them, and what each must give."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """What is in a folder, and what comes of it."""

    lines: tuple[str, ...]
    train: tuple[int, int] | None = None  # images and classes; None: refused
    eval: tuple[int, int] = (6, 3)
    said: str = ""  # part of what is said, or of the refusal
    options: str = ""
    within: str = ""  # the data are in this folder below


def case(
    *lines: str,
    train: tuple[int, int] | None = None,
    eval: tuple[int, int] = (6, 3),
    said: str = "",
    options: str = "",
    within: str = "",
) -> Case:
    return Case(lines, train, eval, said, options, within)


CLASSES = "{bus,cat,tulip}/{1,2}.png"
EIGHT = "{bus,cat,tulip}/{1,2,3,4,5,6,7,8}.png"
BOTH = f"{{train,test}}/{CLASSES}"
SIX = (6, 3)

CASES = {
    # words in other names mean nothing
    "plain": case(BOTH, train=SIX),
    "class called train": case("{train,test}/{bus,train,tulip}/{1,2}.png", train=SIX),
    "class called test": case("{train,test}/{bus,test,tulip}/{1,2}.png", train=SIX),
    "classes called all": case("{train,test}/{val,dev,eval}/{1,2}.png", train=SIX),
    "class called train-station": case("{train,test}/{train-station,b,c}/{1,2}.png", train=SIX),
    "words in files": case("{train,test}/{a,b,c}/{test_1,val.train-2}.png", train=SIX),
    "word in the path": case(BOTH, train=SIX, within="my-test data/train/val"),
    "bracket in the path": case(BOTH, train=SIX, within="birds [2011]/a*b?{c}"),
    "odd names": case("{train,test}/{a b,[c],é#%}/{1 [2],x*y?}.png", train=SIX),
    "colons in the path": case(BOTH, train=SIX, within="zip::http:/x"),
    "folder called as a file": case(
        "{train,test}/{a.png,b.jpg}/{1,2}.png", train=(4, 2), eval=(4, 2)
    ),
    # the split is the top folder of that name
    "Training": case(f"{{Training,Testing}}/{CLASSES}", train=SIX),
    "Train": case(f"{{Train,Test}}/{CLASSES}", train=SIX),
    "TRAIN": case(f"{{TRAIN,VAL}}/{CLASSES}", train=SIX),
    "valid": case(f"{{train,valid}}/{CLASSES}", train=SIX),
    "dev": case(f"{{train,dev}}/{CLASSES}", train=SIX),
    "evaluation": case(f"{{train,evaluation}}/{CLASSES}", train=SIX),
    "test before val": case(BOTH, "val/{bus,cat}/1.png", train=SIX),
    "val is asked for": case(
        BOTH, "val/{bus,cat}/1.png", train=SIX, eval=(2, 2), options="--eval_split val"
    ),
    "validation is val": case(
        f"{{train,val}}/{CLASSES}", train=SIX, options="--eval_split validation"
    ),
    "joined": case(
        BOTH, "val/{bus,cat}/1.png", train=(8, 3), options="--train_split train+validation"
    ),
    "val and valid": case(
        "train/{a,b}/1.png",
        "{val,valid}/{a,b}/1.png",
        train=(2, 2),
        eval=(4, 2),
        said="the split validation is val, valid together",
    ),
    "any names": case(
        f"{{fold1,fold2,fold3}}/{CLASSES}",
        train=(12, 3),
        said="fold3|^$",
        options="--train_split fold1+fold2 --eval_split fold3",
    ),
    "names further down": case(
        f"seg_{{train,test}}/inner/{CLASSES}",
        train=SIX,
        options="--train_split seg_train/inner --eval_split seg_test/inner",
    ),
    "names below the usual ones": case(
        f"{{train,test}}/images/{CLASSES}",
        train=SIX,
        options="--train_split train/images --eval_split test/images",
    ),
    "an archive's folder": case(f"archive/{{train,test}}/{CLASSES}", "__MACOSX/._x.png", train=SIX),
    "folders beside": case(
        BOTH, "extra/{a,b}/1.png", train=SIX, said="no split are left out: extra;"
    ),
    "one that is asked for is not there": case(
        BOTH,
        said="split `fold1` is not in the data, which has: train, test",
        options="--train_split fold1",
    ),
    "trained and measured on": case(
        BOTH, train=(12, 3), said="test is both trained and", options="--train_split train+test"
    ),
    "named twice": case(
        BOTH, said="a split must be named once", options="--train_split train+train"
    ),
    # one split
    "flat": case(EIGHT, train=(12, 3), eval=(12, 3), options="--holdout 0.5"),
    "flat with a class called train": case(
        EIGHT.replace("cat", "train"), train=(12, 3), eval=(12, 3), options="--holdout 0.5"
    ),
    "train only": case(f"train/{EIGHT}", train=(12, 3), eval=(12, 3), options="--holdout 0.5"),
    "Testing only": case(f"Testing/{EIGHT}", train=(12, 3), eval=(12, 3), options="--holdout 0.5"),
    "flat, not held out": case(CLASSES, said="split `test` is not in the data.*`--eval_share 0.1`"),
    "flat, split off": case(EIGHT, train=(12, 3), eval=(12, 3), options="--eval_share 0.5"),
    "split off and held out": case(
        f"train/{EIGHT}", train=(6, 3), eval=(6, 3), options="--eval_share 0.5 --holdout 0.5"
    ),
    "holdout leaves test alone": case(
        f"train/{EIGHT}",
        "test/fox/1.png:broken",
        train=(12, 3),
        eval=(12, 3),
        options="--holdout 0.5 --skip_bad_images",
        said="0 of 24 images of the train split",
    ),
    # links
    "linked image": case(BOTH, "train/cat/3.png -> store/3.png", "store/3.png", train=(7, 3)),
    "linked class": case(
        "{train,test}/{a,b}/1.png", "store/{1,2}.png", "train/c -> store", train=(4, 3), eval=(2, 2)
    ),
    "linked split": case(f"{{store,test}}/{CLASSES}", "train -> store", train=SIX),
    "link to itself": case(BOTH, "train/cat/loop -> train", train=SIX),
    "class that links to nothing": case(
        BOTH, "train/fox -> gone", train=SIX, said="1 links to nothing"
    ),
    "link to nothing": case(
        BOTH, "train/cat/3.png -> gone.png", train=SIX, said="1 links to nothing"
    ),
    # never the same file twice
    "in both splits": case(
        BOTH,
        "test/cat/3.png -> train/cat/1.png",
        train=SIX,
        said="1 found before, under another name",
    ),
    "in two classes": case(
        BOTH, "train/tulip/3.png -> train/cat/1.png", train=SIX, said="1 found before"
    ),
    "test is train": case(
        f"train/{CLASSES}", "test -> train", said="both splits must have|got bus"
    ),
    "a split of links": case(
        BOTH,
        "all/{cat,tulip}/{1,2}.png",
        "all/bus/1.png -> train/bus/1.png",
        train=(5, 3),
        options="--train_split all",
        said="1 found before",
    ),
    # classes that are not what they seem
    "a class of HEIC": case(
        BOTH,
        "{train,test}/d/{1,2}.heic",
        train=SIX,
        said=r"read of these classes of train: d(.|\n)*4 of an unread kind \(.heic\)",
    ),
    "some HEIC": case(
        BOTH, "train/cat/{3,4}.HEIC", train=SIX, said=r"2 of an unread kind \(.heic\)"
    ),
    "no ending": case(BOTH, "train/cat/3", train=SIX, said="1 of an unread kind"),
    "an empty class": case(BOTH, "train/fox/", train=SIX, said="these classes of train: fox"),
    "a class of hidden files": case(
        BOTH, "train/d/.1.png", train=SIX, said="of train: d(.|\n)*1 hidden"
    ),
    "a hidden class": case(BOTH, "train/.old/1.png", train=SIX, said="1 in the hidden folder .old"),
    "a class like __x__": case(
        BOTH,
        "{train,test}/__x__/1.png",
        train=(7, 4),
        eval=(7, 4),
        said="taken as classes of train: __x__",
    ),
    "a class of the test split": case(
        BOTH,
        "test/fox/1.png",
        said="evaluation labels must be classes of the training split, got fox",
    ),
    "a class of the test split, HEIC in training": case(
        BOTH,
        "test/fox/1.png",
        "train/fox/1.heic",
        said="must be classes of the training split, got fox",
    ),
    "a class of the training split": case(BOTH, "train/fox/1.png", train=(7, 4)),
    "nested classes": case(
        BOTH,
        "train/cat/{lion,lynx}/1.png",
        train=(8, 3),
        said="folders within a class count as that class: train/cat/lion",
    ),
    "beside the classes": case(BOTH, "train/1.png", train=SIX, said="1 outside the class folders"),
    "no classes": case("{train,test}/{1,2}.png", said="must hold .*a folder for each class"),
    "one class": case("{train,test}/cat/{1,2}.png", said="two classes or more"),
    "no images": case(
        "{train,test}/a/1.heic", said=r"a folder for each class.*2 of an unread kind \(.heic\)"
    ),
    "nothing": case(said="`--data_dir` must hold parquet files"),
    # parquet
    "parquet": case("{train,test}.parquet", train=(12, 3), eval=(12, 3)),
    "parquet shards": case(
        "{train-00000-of-00002,train-00001-of-00002,test}.parquet", train=(24, 3), eval=(12, 3)
    ),
    "parquet as the Hub names it": case(
        "data/{train-00000-of-00001-b42a775f407cee45,test-part1}.parquet",
        train=(12, 3),
        eval=(12, 3),
    ),
    "parquet Train": case("{Train,valid_0}.parquet", train=(12, 3), eval=(12, 3)),
    "parquet folders": case("{train,test}/{0000,0001}.parquet", train=(24, 3), eval=(24, 3)),
    "parquet and images": case(
        BOTH,
        "{train,test}.parquet",
        train=(12, 3),
        eval=(12, 3),
        said="files beside them not",
    ),
    "parquet words": case(
        "{contest,latest}.parquet",
        train=(12, 3),
        eval=(12, 3),
        options="--train_split contest --eval_split latest",
    ),
    "parquet words, not asked for": case("{train,latest}.parquet", said="which has: latest, train"),
    "one parquet": case("latest.parquet", train=(6, 3), eval=(6, 3), options="--holdout 0.5"),
    "parquet in brackets": case(
        "{train,test}.parquet", train=(12, 3), eval=(12, 3), within="a [1]/b*"
    ),
    # pixels
    **{
        f"{kind} as {mode or 'RGB'}": case(
            f"{{train,test}}/{{a,b}}/{{1,2}}.{kind}:{mode}", train=(4, 2), eval=(4, 2)
        )
        for kind, mode in (
            ("tif", "I"),
            ("tif", "F"),
            ("tif", "I;16"),
            ("png", "I;16"),
            ("tif", "CMYK"),
            ("png", "LA"),
            ("png", "RGBA"),
            ("gif", "P"),
            ("webp", ""),
            ("bmp", "1"),
            ("jpg", "L"),
        )
    },
    "too large": case(
        BOTH,
        "train/cat/3.png:9500x9500",
        train=(7, 3),
        said="cat/3.png must have at most 89478485 pixels, got 9500x9500",
    ),
    "far too large": case(
        BOTH, "train/cat/3.png:20000x9500", train=(7, 3), said="3.png must have at most 894"
    ),
    "too large for the option": case(
        BOTH,
        "train/cat/3.png:90x40",
        train=(7, 3),
        options="--max_image_pixels 3599",
        said="at most 3599 pixels",
    ),
    "too large, skipped": case(
        BOTH,
        "train/cat/3.png:9500x9500",
        train=SIX,
        options="--skip_bad_images",
        said="1 of 7 images .*: .*cat/3.png",
    ),
    "broken": case(
        BOTH,
        "train/cat/3.png:broken",
        train=(7, 3),
        said="image .*train/cat/3.png cannot be decoded",
    ),
    "broken, skipped": case(
        BOTH,
        "train/cat/3.png:broken",
        train=SIX,
        options="--skip_bad_images",
        said="are left out: .*train/cat/3.png",
    ),
    "empty file, skipped": case(
        BOTH,
        "test/cat/{3,4}.jpg:broken",
        train=SIX,
        options="--skip_bad_images",
        said="2 of 8 images of the test",
    ),
}
