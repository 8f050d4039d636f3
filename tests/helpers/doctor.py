"""Run the doctor without its check of the installed files, which hashes 2 GB each time.

`python -m tests.helpers.doctor`, in a clone of the project.
"""

from stages.core.errors import run
from tools import doctor

if __name__ == "__main__":
    del doctor.CHECKS["files"]
    run(doctor.main)
