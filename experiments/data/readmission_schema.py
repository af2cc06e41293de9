"""The 127 columns of the readmission experiment (paper section 5.3), shared by the UCI data and the synthetic
cohort.
"""

from __future__ import annotations

import numpy as np

from experiments.data.errors import BadData

COUNTS = (
    "time_in_hospital",
    "num_lab_procedures",
    "num_procedures",
    "num_medications",
    "number_outpatient",
    "number_emergency",
    "number_inpatient",
    "number_diagnoses",
)

# Every level of every categorical column, with its number of rows among the 101,766 of the UCI file.
LEVELS: dict[str, dict[str, int]] = {
    "gender": {"Female": 54708, "Male": 47055, "Unknown/Invalid": 3},
    "race": {
        "?": 2273,
        "AfricanAmerican": 19210,
        "Asian": 641,
        "Caucasian": 76099,
        "Hispanic": 2037,
        "Other": 1506,
    },
    "age": {
        "[0-10)": 161,
        "[10-20)": 691,
        "[20-30)": 1657,
        "[30-40)": 3775,
        "[40-50)": 9685,
        "[50-60)": 17256,
        "[60-70)": 22483,
        "[70-80)": 26068,
        "[80-90)": 17197,
        "[90-100)": 2793,
    },
    "discharge_disposition_id": {
        "1": 60234,
        "10": 6,
        "11": 1642,
        "12": 3,
        "13": 399,
        "14": 372,
        "15": 63,
        "16": 11,
        "17": 14,
        "18": 3691,
        "19": 8,
        "2": 2128,
        "20": 2,
        "22": 1993,
        "23": 412,
        "24": 48,
        "25": 989,
        "27": 5,
        "28": 139,
        "3": 13954,
        "4": 815,
        "5": 1184,
        "6": 12902,
        "7": 623,
        "8": 108,
        "9": 21,
    },
    "max_glu_serum": {">200": 1485, ">300": 1264, "None": 96420, "Norm": 2597},
    "A1Cresult": {">7": 3812, ">8": 8216, "None": 84748, "Norm": 4990},
    "metformin": {"Down": 575, "No": 81778, "Steady": 18346, "Up": 1067},
    "repaglinide": {"Down": 45, "No": 100227, "Steady": 1384, "Up": 110},
    "nateglinide": {"Down": 11, "No": 101063, "Steady": 668, "Up": 24},
    "chlorpropamide": {"Down": 1, "No": 101680, "Steady": 79, "Up": 6},
    "glimepiride": {"Down": 194, "No": 96575, "Steady": 4670, "Up": 327},
    "acetohexamide": {"No": 101765, "Steady": 1},
    "glipizide": {"Down": 560, "No": 89080, "Steady": 11356, "Up": 770},
    "glyburide": {"Down": 564, "No": 91116, "Steady": 9274, "Up": 812},
    "tolbutamide": {"No": 101743, "Steady": 23},
    "pioglitazone": {"Down": 118, "No": 94438, "Steady": 6976, "Up": 234},
    "rosiglitazone": {"Down": 87, "No": 95401, "Steady": 6100, "Up": 178},
    "acarbose": {"Down": 3, "No": 101458, "Steady": 295, "Up": 10},
    "miglitol": {"Down": 5, "No": 101728, "Steady": 31, "Up": 2},
    "troglitazone": {"No": 101763, "Steady": 3},
    "tolazamide": {"No": 101727, "Steady": 38, "Up": 1},
    "examide": {"No": 101766},
    "citoglipton": {"No": 101766},
    "insulin": {"Down": 12218, "No": 47383, "Steady": 30849, "Up": 11316},
    "glyburide-metformin": {"Down": 6, "No": 101060, "Steady": 692, "Up": 8},
    "glipizide-metformin": {"No": 101753, "Steady": 13},
    "glimepiride-pioglitazone": {"No": 101765, "Steady": 1},
    "metformin-rosiglitazone": {"No": 101764, "Steady": 2},
    "metformin-pioglitazone": {"No": 101765, "Steady": 1},
    "change": {"Ch": 47011, "No": 54755},
    "diabetesMed": {"No": 23403, "Yes": 78363},
}

READMITTED = ("NO", ">30", "<30")
CHILDREN = "age=[0-10)"
CLASSES = ("not readmitted", "readmitted within 30 days")


def kept_levels(column: str) -> list[str]:
    """The levels of `column` that become indicators: all, but the first is dropped where there are two."""
    levels = list(LEVELS[column])
    return levels[1:] if len(levels) == 2 else levels


def feature_names() -> tuple[str, ...]:
    """The names of the 127 columns: eight counts, then 119 indicators "column=level"."""
    return COUNTS + tuple(f"{column}={level}" for column in LEVELS for level in kept_levels(column))


def indicators(column: str, values: np.ndarray) -> np.ndarray:
    """(n, kept levels) uint8 of a column of strings (n,). BadData for a level the schema does not know."""
    import pandas as pd

    values = np.asarray(values, dtype=object)
    codes, found = pd.factorize(values)  # whole numbers compare much faster than texts; -1: a missing value
    places = {str(level): place for place, level in enumerate(found)}
    known = [place for level, place in places.items() if level in LEVELS[column]]
    unknown = ~np.isin(codes, known)
    if unknown.any():
        row = int(np.flatnonzero(unknown)[0])
        raise BadData(
            f"readmission: row {row} has the unknown category {values[row]!r} in column {column}; "
            f"known ones: {', '.join(LEVELS[column])}."
        )
    levels = [places.get(level, -2) for level in kept_levels(column)]  # -2: no row has it
    return np.stack([codes == place for place in levels], axis=1).astype(np.uint8)
